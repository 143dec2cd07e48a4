# mvaema serve with the student of this repository, on a CPU, as a user without rights.
#
#   docker build -t mvaema .
#   docker run --rm -p 127.0.0.1:8000:8000 -e MVAEMA_API_KEY mvaema
#
# docs/serving.md says how to serve another student, and how to pass keys.
FROM python:3.12-slim

# No bytecode beside read-only code; the model hub is never asked, and nothing is reported anywhere.
ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    HF_HUB_OFFLINE=1 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    TOKENIZERS_PARALLELISM=false \
    HF_HOME=/tmp/hf

WORKDIR /app

# Packages change less often than code: they are a layer of their own. PyTorch's index has CPU builds,
# a tenth of the size.
RUN pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
COPY pyproject.toml README.md ./
COPY mvaema/__init__.py mvaema/__init__.py
COPY *_mvaema.py ./
RUN pip install --editable ".[serve]"

COPY mvaema mvaema
COPY config.json generation_config.json model.safetensors processor_config.json tokenizer.json \
     tokenizer_config.json chat_template.jinja ./

# Nothing under /app belongs to it: the process can write to /tmp only.
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin mvaema
USER 10001

EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]

# In a container, localhost is the container: it listens to all, and `docker run -p` says to whom.
ENTRYPOINT ["python", "-m", "mvaema", "serve", "--host", "0.0.0.0", "--port", "8000"]
