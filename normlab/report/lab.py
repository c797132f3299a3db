"""The laboratory from Python: run a comparison, open one, and take the trained network out of it.

    study = normlab.compare("./photos", norms=["bn", "gn"], seeds=3)
    print(study.verdict)
    net = study.best.model()
    print(net.predict("new.jpg")[0])

The command line does the same to the same directories: either goes on where the other stopped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normlab.data import held
from normlab.errors import UsageError, require
from normlab.models.given import give
from normlab.report import notebook
from normlab.study.keeping.records import rows
from normlab.study.running.console import Console
from normlab.study.running.run import Options, or_until_sure, run_study
from normlab.study.spec import make_spec, plural

if TYPE_CHECKING:
    from normlab.report import records
    from normlab.study.trained import Trained
    from normlab.study.verdict import Verdict

_OPTIONS = {field.name for field in dataclasses.fields(Options)}
RUNS = Path("runs")


class Study:
    """A comparison in its directory: what it found, and the networks that it trained.

    What is read is what the directory holds now, also while the comparison runs elsewhere. Of a directory of several
    studies, `number` is that of `normlab status`, by default the one begun last.
    """

    def __init__(self, path: Path | str, number: int | None = None) -> None:
        self.path, self.number = Path(path), number
        self._read()  # so that a directory without a study is refused at once

    @property
    def verdict(self) -> Verdict:
        """What the study says; `str()` of it is the sentence that the command line prints."""
        return self._read().judged

    @property
    def results(self) -> dict[str, Any]:
        """Everything that was recorded, as in `results.json`: cells, environment, spec, verdict, tuning."""
        return self._read().document

    @property
    def best(self) -> Trained:
        """The trained network of the norm that the verdict recommends.

        Of several seeds it is the one of the highest validation accuracy.
        """
        return self.trained()

    def trained(self, norm: str | None = None, seed: int | None = None) -> Trained:
        """The trained network of a norm at its best setting, and of a seed where one is named."""
        from normlab.study.trained import trained_in

        return trained_in(self.path, norm, seed, study=self.number)

    def table(self) -> Table:
        """A row for each norm at its best setting: seeds, test accuracy, macro-F1, speed."""
        return _table(self._read())

    def to_pandas(self) -> Any:
        """A pandas DataFrame with one row for each cell and epoch, the columns of `results.csv`. Needs pandas."""
        require("to_pandas", "pandas")
        import pandas

        return pandas.DataFrame(list(rows(self.results)))

    def report(self, format: str = "html") -> Path:
        """Write the report into the study's directory ("html", "md" or "svg") and return its path."""
        require("report", "report")
        from normlab.report import write

        return write(self.path, format, number=self.number)

    def _read(self) -> records.Study:
        from normlab.report import records

        return records.read(self.path, self.number)

    def __repr__(self) -> str:
        return f"Study({str(self.path)!r})"

    def __str__(self) -> str:
        from normlab.report import summary

        return summary(self.path, self.number)

    def _repr_html_(self) -> str:
        from html import escape

        study = self._read()
        return f"<p><b>{escape(str(study.judged))}</b></p>{_table(study)._repr_html_()}"


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of text under their columns; `str()` aligns them, and a notebook shows a table."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text: str = dataclasses.field(repr=False)

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        from html import escape

        lines = [("th", self.columns), *(("td", row) for row in self.rows)]
        body = "".join(f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in row)}</tr>" for tag, row in lines)
        return f"<table>{body}</table>"


def _table(study: records.Study) -> Table:
    from normlab.report.terminal import aligned, norms_table

    made = norms_table(study)
    return Table(tuple(made.columns), tuple(tuple(row) for row in made.rows), aligned(made))


def compare(
    data: Any = "digits",
    norms: str | Sequence[str] | None = None,
    model: Any = None,
    *,
    seeds: int | Sequence[int] | None = None,
    out: Path | str | None = None,
    class_names: Sequence[str] | None = None,
    console: Console | None = None,
    **settings: Any,
) -> Study:
    """Train a network with each norm on your images, and return the study. The same call goes on where it stopped.

    `data` is what `normlab compare` takes (a folder, an archive, CIFAR, .npz, .csv, Parquet, "digits"), or arrays or
    tensors (x, y), a dict of them, a torch `Dataset`, or a DataFrame of paths and labels; what is in memory is written
    into `out`. `model` is a name ("resnet14", "package.module:factory"), or a function `model(norm, num_classes,
    in_channels)`; such a function trains in this process. So does an `augment` that is an object, such as a transform
    of torchvision (`normlab.study.training.augmenting`). `settings` are the axes and options of the command line under
    their names there: `epochs=20, batch_sizes=[8, 32], lr=0.1, jobs=2, device="cpu", budget=600`. Without `seeds` two
    norms or more are trained until it is sure which to use (`until_sure`), two to twelve times each; `seeds=1` is one
    look. `out` is the study's directory, by default runs/<name of the data>.

    Raises UsageError for a setting that is wrong, DataError for images that cannot be used. An interrupt stops it with
    everything kept that was trained.
    """
    options = {name: settings.pop(name) for name in _OPTIONS & settings.keys()}
    given = {"norms": norms, "model": model, "seeds": seeds, **settings}
    values = plural({name: value for name, value in given.items() if value is not None})
    in_memory = not isinstance(data, str | Path)
    if in_memory:
        kept = held(data, class_names, values.get("image_size"))
        name = Path(kept.name).stem
        out = Path(out) if out is not None else RUNS / name
        values["data"] = str(kept.write(out))
    else:
        if class_names is not None:
            raise UsageError("class_names is for arrays; the classes of files are called as their folders or labels")
        values["data"] = str(data)
        out = Path(out) if out is not None else RUNS / (Path(str(data)).stem or "data")
    for setting in ("models", "augment"):
        named = values.get(setting, ())
        listed = named if isinstance(named, list | tuple) else [named]
        if any(not isinstance(one, str) for one in listed):
            values[setting] = [one if isinstance(one, str) else give(one, setting.removesuffix("s")) for one in listed]
            options["inline"] = True
    spec = make_spec(values)
    results = run_study(spec, out, or_until_sure(spec, Options(**options)), console=console or notebook.console())
    return Study(out, results["study"])


def open_study(path: Path | str, number: int | None = None) -> Study:
    """The study in a directory, that of `compare(out=...)` or of `normlab compare --out`.

    Of several studies the one of this number in `normlab status`, by default the one begun last. Raises UsageError or
    DataError where there is none.
    """
    return Study(path, number)
