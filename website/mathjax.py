"""MathJax for pages that must show formulas without a network: copied beside them from a Python package."""

import shutil
from pathlib import Path

# As Jupyter's own pages have it: the package carries the STIX fonts alone.
CONFIG = """\
MathJax.Hub.Config({
  messageStyle: "none",
  showMathMenu: false,
  "HTML-CSS": {availableFonts: [], preferredFont: null, imageFont: null, webFont: "STIX-Web",
               linebreaks: {automatic: true}, EqnChunk: 500, EqnChunkDelay: 1}
});
MathJax.Ajax.loadComplete("[MathJax]/config/course.js");
"""


def add(folder: Path) -> str:
    """Copy MathJax to `folder/mathjax`; the address of its script, relative to `folder`."""
    import jupyter_server_mathjax

    source = Path(jupyter_server_mathjax.__file__).with_name("static")
    target = folder / "mathjax"
    unused = shutil.ignore_patterns("a11y", "localization", "SVG", "svg", "otf", "eot")
    shutil.copytree(source, target, ignore=unused, dirs_exist_ok=True)
    (target / "config" / "course.js").write_text(CONFIG, encoding="utf-8")
    # Fonts that the package lacks, for formulas in the browser's own MathML, and one that stands for none: a browser
    # reports each as an error.
    whole = target / "config" / "TeX-AMS-MML_HTMLorMML-full.js"
    text = whole.read_text(encoding="utf-8")
    for absent in ("url('about:blank", """url('"+n+"/MathJax_"""):
        text = text.replace(absent, "local('")
    whole.write_text(text, encoding="utf-8")
    return "mathjax/MathJax.js?config=TeX-AMS-MML_HTMLorMML-full,course"
