"""Sphinx's settings for the course's site; `python website/build.py` lays out what it renders."""

project = "Generative computer vision, by hand"
author = "The course's authors"
project_copyright = "MIT licence"
html_title = project
language = "en"

extensions = ["myst_nb", "sphinx.ext.mathjax"]
exclude_patterns = ["extra"]
myst_enable_extensions = ["dollarmath", "amsmath", "fieldlist", "colon_fence", "attrs_inline"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # outputs as committed
nb_merge_streams = True
# Cells folded in the lesson are folded here.
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide the code"

python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = "hide"

# mathjax_path is given by build.py: a copy beside the pages, so that formulas need no network.
myst_update_mathjax = False
mathjax2_config = {
    "tex2jax": {
        "inlineMath": [[r"\(", r"\)"]],
        "displayMath": [[r"\[", r"\]"]],
        "processClass": "math",
        "ignoreClass": ".*",
    }
}

# A page may skip a level of headings; and there are two cameras, the toy world's and the photographer's.
suppress_warnings = ["myst.header", "ref.python"]

html_theme = "furo"
pygments_dark_style = "one-dark"
html_static_path = ["static"]
html_css_files = ["course.css"]
html_copy_source = False
html_show_sphinx = False
templates_path: list[str] = []
