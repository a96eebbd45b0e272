"""Language modelling: documents, prompts and conversations as blocks of tokens, their loss and perplexity."""
