# docker build -t capaboost . && docker run --gpus all -v "$PWD:/work" capaboost train-vtab --data photos/
FROM python:3.11-slim
WORKDIR /src
COPY . .
RUN pip install --no-cache-dir -c constraints.txt '.[peft,plots]'
WORKDIR /work
ENTRYPOINT ["capaboost"]
CMD ["--help"]
