"""How many rows a task trains on and is tested on, to estimate how long a run takes."""

# Test rows of VTAB-1k, whose training rows are 1,000 (google-research/task_adaptation, and the data sets' own pages).
VTAB_TEST = {
    "caltech101": 6084, "cifar": 10000, "dtd": 1880, "oxford_flowers102": 6149, "oxford_iiit_pet": 3669, "svhn": 26032,
    "sun397": 21750, "patch_camelyon": 32768, "eurosat": 5400, "resisc45": 6300, "diabetic_retinopathy": 42670,
    "clevr_count": 15000, "clevr_dist": 15000, "dmlab": 22735, "kitti": 711, "dsprites_loc": 73728,
    "dsprites_ori": 73728, "smallnorb_azi": 12150, "smallnorb_ele": 12150, "digits": 797,
}  # fmt: skip
# Rows to train on and of dev (Wang et al., 2019; Rajpurkar et al., 2016 and 2018).
TEXT = {
    "cola": (8551, 1043), "sst2": (67349, 872), "mrpc": (3668, 408), "stsb": (5749, 1500), "qqp": (363846, 40430),
    "mnli": (392702, 19647), "qnli": (104743, 5463), "rte": (2490, 277), "squad_v1": (87599, 10570),
    "squad_v2": (130319, 11873),
}  # fmt: skip
UNKNOWN = (1000, 2000)


def rows_of(task: str, most: int | None) -> tuple[int, int]:
    """Rows to train on, at most so many, and to test on."""
    train, test = (1000, VTAB_TEST[task]) if task in VTAB_TEST else TEXT.get(task, UNKNOWN)
    return min(train, most or train), test
