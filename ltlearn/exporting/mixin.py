"""The methods of a learner that write its model for others to load."""

from collections.abc import Mapping
from pathlib import Path

from ltlearn.data.needs_images import needs_images
from ltlearn.exporting.exported import Exported
from ltlearn.exporting.source import source_of_learner
from ltlearn.utils.ranks import by_first, check_one

__all__ = ["ExportMixin"]


class ExportMixin:
    """Exports of an `LTLearner`. Each loads what it wrote and compares the logits first."""

    @by_first
    @needs_images
    def export_timm(
        self, folder: str | Path, label_descriptions: Mapping[str, str] | None = None
    ) -> Exported:
        """Write a folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` loads.

        The head is folded into timm's own classifier, so that ltlearn is not needed. `config.json`
        has the class names, and the statistics and size for
        `timm.data.resolve_model_data_config`. timm does not have the CIFAR ResNets; a folder with
        one holds its source, too, which has to be imported first.

        Args:
            folder: The folder. Files of an earlier export in it are replaced.
            label_descriptions: A longer text for each class name.

        Returns:
            What was written, the largest difference of the logits, and the lines that load it.

        Raises:
            UserError: If the head cannot be folded into a linear layer (`CosineLinear`,
                `NearestClassMean`), the backbone is no model of timm, or the folder cannot be
                written.

        Example:
            >>> print(learn.export_timm("birds"))
        """
        from ltlearn.exporting.timm_folder import export_timm_folder

        return export_timm_folder(source_of_learner(self), Path(folder), label_descriptions)

    @by_first
    @needs_images
    def export_onnx(self, file: str | Path, normalize: bool = False) -> Exported:
        """Write one ONNX file with a free batch size, checked with onnxruntime.

        A head that cannot be folded into a linear layer is part of the graph. The metadata of the
        file has the class names, mean, std, size and the version of ltlearn.

        Args:
            file: The file.
            normalize: Whether the graph takes pixels in [0, 1] and normalises them itself. The
                layout is (N, 3, H, W), float32, RGB, either way.

        Returns:
            What was written, the largest difference of the logits, and the lines that load it.

        Raises:
            UserError: If the extra `onnx` is not installed, the model cannot be exported, or the
                file cannot be written.

        Example:
            >>> print(learn.export_onnx("birds.onnx", normalize=True))
        """
        from ltlearn.exporting.onnx_file import export_onnx_file

        return export_onnx_file(source_of_learner(self), Path(file), normalize)

    @by_first
    @needs_images
    def export_torchscript(self, file: str | Path, normalize: bool = False) -> Exported:
        """Write a TorchScript file, which `torch.jit.load` loads without other packages.

        A head that cannot be folded into a linear layer is part of it.

        Args:
            file: The file.
            normalize: As for `export_onnx`.

        Returns:
            What was written, the largest difference of the logits, and the lines that load it.

        Raises:
            UserError: If the model cannot be traced, or the file cannot be written.

        Example:
            >>> print(learn.export_torchscript("birds.pt"))
        """
        from ltlearn.exporting.torchscript_file import export_torchscript_file

        return export_torchscript_file(source_of_learner(self), Path(file), normalize)

    @needs_images
    def push_to_hub(
        self,
        repo: str,
        *,
        title: str | None = None,
        out: str | Path | None = None,
        private: bool = False,
        license: str | None = None,
        dry_run: bool = False,
        token: str | None = None,
    ) -> Exported:
        """Publish the model on the Hugging Face hub as timm's folder, with a model card.

        The card reports the classes and their counts, the accuracy on the test images (or the
        validation images, if there are no others), a plot, limits, the licence and the lines that
        load the model. A head that cannot be folded leaves as ONNX and TorchScript instead.

        Args:
            repo: The repository, such as "user/birds"; it is made if there is none.
            title: What the model classifies, in a phrase. None: "An image classifier".
            out: Folder to write and keep. None: a temporary one.
            private: Whether a new repository is private.
            license: Identifier of the model's licence on the hub, such as "apache-2.0". None leaves
                it out.
            dry_run: Whether to write the folder `out` alone, and upload nothing.
            token: The token of the hub. None takes the one that `hf auth login` stored.

        Returns:
            What was written, the largest difference of the logits, the lines that load it, and the
            address.

        Raises:
            UserError: As the exports do, or if the name is not allowed or the hub refuses it.

        Example:
            >>> learn.push_to_hub("user/birds", out="birds-card", dry_run=True)
        """
        check_one("push_to_hub")
        from ltlearn.exporting.hub import HubOptions
        from ltlearn.exporting.learner_card import publish_learner

        out = None if out is None else Path(out)
        options = HubOptions(repo, out, private, license, dry_run, token)
        return publish_learner(self, title, options)
