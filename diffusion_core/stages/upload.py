"""Upload a folder of images to a bucket, for `ingest`."""

from pathlib import Path

from diffusion_core.address import parse_s3
from diffusion_core.config.environment import Environment
from diffusion_core.counts import count_of
from diffusion_core.data.sources.folder import image_files
from diffusion_core.errors import UserError
from diffusion_core.progress import Progress
from diffusion_core.storage import open_store, upload_all


def run(folder: Path, url: str, environment: Environment) -> None:
    """Upload the images below `folder`, and tables of labels, to the same paths below `url`.

    Those that are there already are not sent.

    Nothing in the bucket is deleted. After an error, uploaded images are complete and not sent again.

    Raises:
        UserError: the folder has no image or cannot be read, or the store cannot be used.
    """
    try:
        address = parse_s3(url)
    except ValueError as error:
        raise UserError(f"upload: {error}") from None
    if not folder.is_dir():
        raise UserError(f"upload: {folder} is not a folder: name the folder of the images")
    root = folder.resolve()
    found = image_files(root, "upload")
    # Tables come last, so that no one names an image that is not there.
    images, others = [*found.images, *found.tables], found.others.total()
    if not found.images:
        raise UserError(f"upload: {folder} holds no image: name the folder of the images")
    store = open_store(environment)
    listed = {each.key: each for each in store.objects(address.bucket, address.prefix)}
    keys = [address.prefix + image.relative_to(root).as_posix() for image in images]
    files = [(image, key, listed.get(key)) for image, key in zip(images, keys, strict=True)]
    total = sum(image.stat().st_size for image in images)
    sent = 0
    with Progress("upload", total, "B") as progress:
        for image, is_sent in zip(images, upload_all(store, address.bucket, files), strict=True):
            sent += is_sent
            progress.add(image.stat().st_size)
    if others or found.links:
        print(f"upload: left out files that are not images: {others:,}, and links that lead elsewhere: {found.links:,}")
    print(f"upload: sent {count_of(sent, 'file')} to {address}; {len(images) - sent:,} were there already")
