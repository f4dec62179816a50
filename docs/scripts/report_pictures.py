"""Pictures of a report for README: the page, and its top with the map of the layers.

    python examples/diagnose.py
    python docs/scripts/report_pictures.py outputs/sick.html

Needs Chromium (`--browser`, if it is not called `chromium`).
"""

import argparse
import pathlib
import subprocess
import tempfile

DOCS = pathlib.Path(__file__).parents[1]
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")
# The losses stand between the findings and the map.
WITHOUT_LOSSES = "<style>section[aria-labelledby=loss]{display:none}</style></head>"


def photograph(browser: str, page: pathlib.Path, size: str, to: pathlib.Path) -> None:
    """The page in a window of so many pixels, "width,height"."""
    with tempfile.TemporaryDirectory() as profile:
        own = (f"--user-data-dir={profile}", f"--window-size={size}")
        command = [browser, *FLAGS, *own, f"--screenshot={to}", page.resolve().as_uri()]
        subprocess.run(command, check=True, capture_output=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=pathlib.Path, help="what `report` wrote")
    parser.add_argument("--browser", default="chromium")
    parser.add_argument("--out", type=pathlib.Path, default=DOCS)
    options = parser.parse_args(arguments)
    photograph(options.browser, options.page, "1280,1500", options.out / "report.png")
    with tempfile.TemporaryDirectory() as folder:
        short = pathlib.Path(folder, "top.html")
        text = options.page.read_text("utf-8")
        short.write_text(text.replace("</head>", WITHOUT_LOSSES), "utf-8")
        photograph(options.browser, short, "1280,880", options.out / "report_top.png")


if __name__ == "__main__":
    main()
