"""Fifteen claims about depthwise separable convolution, each put to the test by measurement.

A claim's test is a function of a Lab, which trains networks (or finds runs already made) on one data set with paired
seeds; what comes of it is a Finding.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib import style
from rich.text import Text

from sepconv import InputError, files
from sepconv.config.keys import ClaimsConfig
from sepconv.config.rules import check_choice
from sepconv.data.datasets import load
from sepconv.reading import read_json
from sepconv.study.claims import arithmetic, deployed, layers, trained
from sepconv.study.claims.finding import Finding
from sepconv.study.claims.lab import Lab
from sepconv.study.claims.report import claims_page, make_record, write_findings
from sepconv.study.plots import STYLE
from sepconv.terminal import CONSOLE, kept, track
from sepconv.training import runs
from sepconv.training.trainer import stoppable

# the test of each claim; its docstring is the claim
CLAIMS: dict[str, Callable[[Lab], Finding]] = {
    "C1": arithmetic.standard_cost,
    "C2": arithmetic.depthwise_cost,
    "C3": arithmetic.pointwise_cost,
    "C4": arithmetic.separable_ratio,
    "C5": arithmetic.factor_of_kernel_area,
    "C6": arithmetic.worked_example,
    "C7": trained.depth_at_equal_cost,
    "C8": layers.few_input_channels,
    "C9": trained.residual_connections,
    "C10": trained.overfitting_and_storage,
    "C11": layers.stacked_receptive_field,
    "C12": layers.speed_in_training,
    "C13": trained.rank_one_kernels,
    "C14": trained.first_layer,
    "C15": deployed.loss_in_int8,
}


def sentence(test: Callable[[Lab], Finding]) -> str:
    """The claim that is tested."""
    return " ".join((test.__doc__ or "").split())


def verify(config: ClaimsConfig, overrides: list[str]) -> None:
    """Tests the claims that `config` asks for, prints each verdict, and writes the findings and `claims.md`.

    What the same command found before it was stopped is kept, where the code is the same.

    Raises InputError for an unknown claim, data that are not there, or a folder that cannot be written; and, once the
    others are tested, for a claim that cannot be.
    """
    names = config.only or list(CLAIMS)
    sentences = {name: sentence(test) for name, test in CLAIMS.items()}
    for name in names:
        check_choice("only", name, *CLAIMS)
    lab = Lab(config, load(config.data))
    folder, data = Path(config.output), config.data.name
    files.make_folder(folder / "claims")
    path, marker = folder / "claims" / f"{data}.json", folder / "claims" / f"{data}.unfinished"
    identity = {"command": runs.command_line("claims", overrides), "code": lab.code_hash}
    begun: dict[str, Any] = identity | {"claims": []}
    kept_or_not = (
        "what is finished is kept, and the same command goes on from there" if lab.code_hash
        else "the same command begins anew, as this code is not committed"
    )  # fmt: skip
    failed: dict[str, str] = {}  # and why
    with files.lock(folder / "claims", "written"), stoppable(lambda: kept_or_not):
        records: dict[str, Any] = read_json(path) if path.exists() else {}
        if lab.code_hash and marker.exists() and (before := read_json(marker)) | identity == before:
            begun = before
        for name in track(names, "claims: claim"):
            CONSOLE.print(Text(name, "bold"), sentences[name], soft_wrap=True)
            if name in begun["claims"] and name in records:
                CONSOLE.print("  found before the stop", soft_wrap=True)
                continue
            started, lab.used = time.time(), {}
            try:
                finding = CLAIMS[name](lab)
            except InputError as error:  # the other claims are not lost
                failed[name] = str(error)
                CONSOLE.print("  not tested", soft_wrap=True)
                continue
            seconds = time.time() - started
            records[name] = make_record(finding, lab, seconds, overrides)
            write_json(path, records)  # at once: some take long
            verdict = write_findings(records)[name].verdict
            CONSOLE.print(f"  {verdict} ({seconds:.0f} s)", soft_wrap=True)
            if finding.plot is not None:
                with kept(f"the picture of {name}"), style.context(STYLE):
                    finding.plot().savefig(folder / "claims" / f"{data}-{name}.png", dpi=110)
                    records[name]["plot"] = True
                write_json(path, records)
            begun["claims"].append(name)
            write_json(marker, begun)
            files.write(folder / "claims.md", claims_page(folder, sentences))
        files.write(folder / "claims.md", claims_page(folder, sentences))
        marker.unlink(missing_ok=True)
    CONSOLE.print(f"report in {folder.resolve()}/claims.md", soft_wrap=True)
    if failed:
        raise InputError("; ".join(failed.values()))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a record for reading."""
    files.write(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
