#!/bin/sh
# The entrypoint of the S3 store. The image's own would set aside gigabytes of empty volumes for each bucket.
set -eu

if [ "$(id -u)" = 0 ]; then
    chown seaweed:seaweed /data
    exec su-exec seaweed sh "$0"
fi

umask 077
cat > /tmp/s3.json <<EOF
{"identities": [{
    "name": "diffusion",
    "credentials": [{"accessKey": "$S3_ACCESS_KEY", "secretKey": "$S3_SECRET_KEY"}],
    "actions": ["Admin", "Read", "Write", "List", "Tagging"]
}]}
EOF
# The gateway's second port, 18333, listens where S3 does and lets anybody make accounts unless there is a key.
WEED_JWT_FILER_SIGNING_KEY=$(head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n')
export WEED_JWT_FILER_SIGNING_KEY
unset S3_ACCESS_KEY S3_SECRET_KEY

# Everything but S3 asks for no password, so it stays on the container's own loopback.
exec weed -logtostderr=true server -dir=/data -volume.max=0 -master.volumeSizeLimitMB=1024 -master.telemetry=false \
    -ip=127.0.0.1 -ip.bind=127.0.0.1 -s3 -s3.ip.bind=0.0.0.0 -s3.port=8333 -s3.config=/tmp/s3.json \
    -s3.iam=false -s3.port.iceberg=0 -s3.port.lance=0 -s3.allowDeleteBucketNotEmpty=false
