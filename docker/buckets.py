"""Create the buckets that are missing: `buckets.py NAME...`; the address and the keys are boto3's variables."""

import sys

import boto3

store = boto3.client("s3")
present = {bucket["Name"] for bucket in store.list_buckets()["Buckets"]}
for name in sys.argv[1:]:
    if name not in present:
        store.create_bucket(Bucket=name)
