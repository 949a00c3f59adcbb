"""Choose the reader of a path."""

from pathlib import Path

from ltlearn.data.readers.annotations import list_json
from ltlearn.data.readers.kinds import reading_options, source_kind
from ltlearn.data.readers.listed import ListedImages
from ltlearn.data.readers.split_folders import list_folder
from ltlearn.data.readers.tables import list_table
from ltlearn.errors import UserError

__all__ = ["list_images"]


def list_images(
    source: str | Path, skip_bad: bool = False, stops: list[str] | None = None, **options
) -> ListedImages:
    """List the images of a folder, a CSV or TSV table or a JSON of annotations.

    Args:
        source: The folder or file.
        skip_bad: Leave out listed images that are not there, instead of stopping at one.
        stops: As for `list_table`; of a folder none are said.
        **options: For `list_table` or `list_json`, whichever reads it.

    Raises:
        UserError: If it is none of these, or cannot be used.
    """
    path = Path(source).expanduser()
    kind, options = source_kind(path), reading_options(path, options)
    if kind == "hf":
        raise UserError(
            f"{path} is a saved Hugging Face dataset, whose images are no files; read it with "
            "LTDataLoaders.from_hf."
        )
    if kind == "folder":
        return list_folder(path)
    return {"json": list_json, "table": list_table}[kind](
        path, skip_bad=skip_bad, stops=stops, **options
    )
