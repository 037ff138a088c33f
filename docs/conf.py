"Sphinx's settings; docs/stage.py puts a copy of this file beside the pages."

import ast
import inspect
import json
import re
import textwrap
from html import escape
from pathlib import Path

from fastcore.docments import docments

SITE = json.loads((Path(__file__).parent / 'site.json').read_text(encoding='utf-8'))

project, author, release = SITE['name'], SITE['author'], SITE['version']
project_copyright = author
language = 'en'
smartquotes_action = 'D'  # dashes alone: quotes stay as the notebooks have them, and as code in comments must have them
extensions = [
    'sphinx.ext.autodoc',
    'sphinx.ext.mathjax',
    'sphinx.ext.viewcode',
    'myst_nb',
    'sphinx_design',
    'sphinx_copybutton',
]
exclude_patterns = ['_static']

# pages
myst_enable_extensions = ['dollarmath', 'amsmath', 'colon_fence', 'deflist']
myst_heading_anchors = 3
nb_execution_mode = 'off'
nb_merge_streams = True
nb_render_markdown_format = 'myst'

# the modules
autodoc_typehints = 'signature'
autodoc_member_order = 'bysource'
add_module_names = False
python_use_unqualified_type_names = True
maximum_signature_line_length = 76
toc_object_entries_show_parents = 'hide'

# look
html_theme = 'furo'
html_title = SITE['name']
html_static_path = ['_static']
html_css_files, html_js_files = ['site.css'], ['site.js']
html_extra_path = ['404.html']
html_search_scorer = str(Path(__file__).parent / '_static' / 'scorer.js')
html_baseurl = SITE['site']  # of the canonical links; empty where the site has no address yet
html_favicon = '_static/favicon.svg'
html_logo = '_static/logo.svg'
html_copy_source = html_show_sourcelink = html_use_index = html_domain_indices = False
pygments_style, pygments_dark_style = 'friendly', 'github-dark'
copybutton_selector = 'div.cell_input pre, section > div[class*=highlight-] pre, details div[class*=highlight-] pre'
html_theme_options = dict(
    light_css_variables={
        'color-brand-primary': '#2a5c8a',
        'color-brand-content': '#2a5c8a',
        'color-brand-visited': '#5c4a86',
    },
    dark_css_variables={
        'color-brand-primary': '#8fbce6',
        'color-brand-content': '#8fbce6',
        'color-brand-visited': '#b7a4e0',
    },
    footer_icons=[dict(name='the repository', url=SITE['url'], html='source', **{'class': ''})],
)

# formulas and widgets, from files of the site alone
mathjax_path = 'vendor/tex-svg.js'
mathjax3_config = {'svg': {'fontCache': 'global'}, 'options': {'enableMenu': False}}
nb_ipywidgets_js = {'vendor/require.js': {}, 'widgets.js': {}, 'vendor/embed-amd.js': {}} if SITE['vendored'] else {}


def rst(text: str) -> str:  # Markdown as it stands in docstrings and comments
    """The same as reStructuredText: code, formulas, links to the bibliography, and names of the package that become
    links."""

    def piece(m):
        if m['code']:
            name = m['code'].rstrip('()')
            return f':py:obj:`{m["code"]} <{SITE["names"][name]}>`' if name in SITE['names'] else f'``{m["code"]}``'
        if m['math']:
            return f':math:`{m["math"]}`'
        if m['key']:
            return f':ref:`{m["said"]} <{m["key"]}>`'
        return '\\' + m[0]

    return re.sub(
        r'`(?P<code>[^`\n]+)`|\$(?P<math>[^$\s](?:[^$]*[^$\s])?)\$(?!\w)|\[(?P<said>[^\]]+)\]\(\.\./docs/bibliography\.md#(?P<key>\w+)\)|[*|\\]|_(?!\w)',
        piece,
        text,
    )


def says_nothing(f) -> bool:
    "Whether a function has no value to return: then the comment at the end of its line is about its one parameter."
    tree = ast.parse(textwrap.dedent(inspect.getsource(f)))
    return not any(
        isinstance(n, ast.Return) and n.value or isinstance(n, (ast.Yield, ast.YieldFrom)) for n in ast.walk(tree)
    )


def comments(obj) -> dict[str, str]:  # {parameter or 'return': what is said of it}
    "The comments beside parameters."
    said = {
        k: ' '.join(v['docment'].split()) if v['docment'] else ''
        for k, v in docments(obj, full=True).items()
        if k != 'self'
    }
    bare = [k for k, text in said.items() if k != 'return' and not text]
    if inspect.isclass(obj):
        said.pop('return', None)
    elif said.get('return') and len(said) == 2 and bare and says_nothing(obj):
        said = {bare[0]: said['return']}
    return {k: text for k, text in said.items() if text}


def docments_to_fields(app, what, name, obj, options, lines):
    "Parameters and what comes back, from the comments beside them."
    if what == 'module':
        lines.clear()
        return  # a promise to the reader of its lesson, which is linked above
    lines[:] = [rst(line) for line in lines]
    if what not in ('class', 'function', 'method', 'exception', 'property'):
        return
    try:
        said = comments(obj.fget if isinstance(obj, property) else obj)
    except (OSError, TypeError, ValueError):
        return  # made by the library, with no source of its own
    fields = [('returns' if k == 'return' else f'param {k}', text) for k, text in said.items()]
    fields = [f':{name}: {rst(text)}' for name, text in fields]
    if fields:
        lines += ['', *fields, '']


def describe_page(app, page, template, context, doctree):
    "The description that a search engine shows: the promise of a lesson, or what a page is about."
    text = SITE['descriptions'].get(page) or f'{context.get("title", "")}: a page of {project}.'
    context['metatags'] = f'{context.get("metatags", "")}\n<meta name="description" content="{escape(text)}">'


def setup(app):
    app.connect('autodoc-process-docstring', docments_to_fields)
    app.connect('html-page-context', describe_page)
