"""Tests the claims about separable convolution, and writes docs/claims.md: python scripts/claims.py scale=quick"""

from sepconv.cli import command
from sepconv.config.keys import ClaimsConfig


@command("claims")
def main(config: ClaimsConfig, overrides: list[str], started: float) -> None:
    from sepconv.study.claims import verify

    verify(config, overrides)


if __name__ == "__main__":
    main()
