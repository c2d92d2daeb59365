"""S3 object stores: the only modules that use boto3.

Uploads and downloads are compared with the store's hashes. Every error is one sentence that names the variable to
correct.
"""

from diffusion_core.storage.client import Object, Patience, Store, delete, open_store
from diffusion_core.storage.fetching import download, download_all
from diffusion_core.storage.sending import upload, upload_all, upload_open

__all__ = [
    "Object",
    "Patience",
    "Store",
    "delete",
    "download",
    "download_all",
    "open_store",
    "upload",
    "upload_all",
    "upload_open",
]
