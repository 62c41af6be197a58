"""Redraw every figure and table from the committed records."""

from importlib import import_module

from rich.progress import track

from paper_figures._comparison import HERE

# figNN_name.py and tabNN_name.py, each with NAME and main().
SCRIPTS = [
    import_module(f"paper_figures.{path.stem}")
    for pattern in ("fig[0-9]*.py", "tab[0-9]*.py")
    for path in sorted(HERE.glob(pattern))
]

if __name__ == "__main__":
    for script in track(SCRIPTS, description="drawing"):
        script.main()
