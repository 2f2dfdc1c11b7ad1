"""Fourteen claims about depthwise separable convolution, each put to the test by measurement.

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

from sepconv import InputError
from sepconv.config import ClaimsConfig, check_choice
from sepconv.data.datasets import load
from sepconv.study.claims import arithmetic, layers, trained
from sepconv.study.claims.finding import Finding
from sepconv.study.claims.lab import Lab
from sepconv.study.claims.report import claims_page, make_record
from sepconv.study.plots import STYLE
from sepconv.terminal import CONSOLE

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
}


def sentence(test: Callable[[Lab], Finding]) -> str:
    """The claim that is tested."""
    return " ".join((test.__doc__ or "").split())


def verify(config: ClaimsConfig, overrides: list[str]) -> None:
    """Tests the claims that `config` asks for, prints each verdict, and writes the findings and `claims.md`.

    Raises InputError for an unknown claim, data that are not there, or a folder that cannot be written.
    """
    names = config.only or list(CLAIMS)
    sentences = {name: sentence(test) for name, test in CLAIMS.items()}
    for name in names:
        check_choice("only", name, *CLAIMS)
    lab = Lab(config, load(config.data))
    folder, data = Path(config.output).expanduser(), config.data.name
    try:
        (folder / "claims").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {folder} ({error.strerror}): choose another output=") from error
    path = folder / "claims" / f"{data}.json"
    records: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for name in names:
        CONSOLE.print(Text(name, "bold"), sentences[name], soft_wrap=True)
        started, lab.used = time.time(), []
        with style.context(STYLE):
            finding = CLAIMS[name](lab)
            if finding.plot is not None:
                finding.plot.savefig(folder / "claims" / f"{data}-{name}.png", dpi=110)
        seconds = time.time() - started
        records[name] = make_record(finding, lab, seconds, overrides)
        path.write_text(json.dumps(records, indent=1, ensure_ascii=False) + "\n")  # at once: some take long
        CONSOLE.print(f"  {finding.verdict} ({seconds:.0f} s)", soft_wrap=True)
    (folder / "claims.md").write_text(claims_page(folder, sentences))
    CONSOLE.print(f"report in {folder.resolve()}/claims.md", soft_wrap=True)
