"""Russian lessons and assignments are the English ones in other words: the same cells, the same code, nothing stale."""

import re

import nbformat
import pytest
import test_notebooks as rules
import test_turns

from website import russian

ROOT = russian.ROOT
EACH = pytest.mark.parametrize("path", russian.lessons(), ids=lambda path: path.stem)
BOTH = pytest.mark.parametrize("path", [*russian.lessons(), *russian.assignments()], ids=lambda path: path.stem)

# What holds for a lesson in whatever language.
SHARED = [
    rules.test_is_valid_and_small,
    rules.test_is_committed_with_its_outputs,
    rules.test_sliders_stay_alive,
    rules.test_setup_installs_the_course_and_leaves_torch,
    rules.test_is_short,
    rules.test_names_no_folder_of_a_machine,
    rules.test_stores_no_widgets,
]


def pairs(path):
    """Each English cell with its Russian one."""
    return list(zip(rules.read(russian.english(path)).cells, rules.read(path).cells, strict=True))


def prose(path):
    return [(old, new) for old, new in pairs(path) if old.cell_type == "markdown"]


# --- in step ---


@BOTH
def test_is_in_step_with_english(path):
    problems = [f"{path.stem} {cell}: {what}" for cell, what in russian.stale(path)]
    assert not problems, "mend, then `python website/russian.py confirm`:\n" + "\n".join(problems)


@BOTH
def test_prose_says_the_same_numbers_and_links(path):
    for old, new in prose(path):
        found = [set(russian.numbers(cell.source, cell is new)) for cell in (old, new)]
        assert found[0] == found[1], f"{path.stem} {old.id}"
        outside = r"https?://(?!colab\.)[^\s)\"'>]+"
        assert set(re.findall(outside, old.source)) == set(re.findall(outside, new.source)), f"{path.stem} {old.id}"


@BOTH
def test_links_to_other_lessons_lead_somewhere(path):
    for _, new in prose(path):
        for target in re.findall(r"(?:\]\(|href=\")([^)#:\"\s]+)[#)\"]", new.source):
            assert (path.parent / target).is_file(), f"{path.stem} {new.id}: {target}"
            assert not (path.parent / target.removeprefix("../")).is_file() or "../" not in target, (
                f"{path.stem} {new.id}: {target} is there in Russian"
            )


# --- the rules of the lessons ---


@pytest.mark.parametrize("rule", SHARED, ids=lambda rule: rule.__name__.removeprefix("test_"))
@EACH
def test_keeps_the_rules_of_the_lessons(path, rule):
    rule(path)


@EACH
def test_opens_with_title_badge_and_measurement(path):
    first = rules.read(path).cells[0].source
    number = int(path.stem[:2])
    assert first.startswith(f"# {number}. ") and russian.CYRILLIC.search(first.splitlines()[0])
    owner_and_name = rules.repository().removeprefix("https://github.com/")
    badges = re.findall(r"https://colab\.research\.google\.com/github/[^\s)\"']+", first)
    assert badges == [f"https://colab.research.google.com/github/{owner_and_name}/blob/main/notebooks/ru/{path.name}"]
    assert re.search(r"\*Измерено на процессоре с двумя ядрами, без GPU и сети: \d+ с, \d+,\d ГБ\.\*", first)


@EACH
def test_sections_and_folds_are_those_of_the_english_lesson(path):
    old, new = (rules.headings(rules.read(page)) for page in (russian.english(path), path))
    names = {"Setup": "Подготовка", "Summary": "Итоги"}
    expected = [re.match(r"\d+\.", heading)[0] if heading[0].isdigit() else names[heading] for heading in old]
    assert [heading.split()[0] for heading in new] == expected
    for before, after in prose(path):
        for english, translated in (
            (r"^### Your turn: ", r"^### Ваш ход: "),
            ("<summary>Hint</summary>", "<summary>Подсказка</summary>"),
            ("<details>", "<details>"),
            (r"\*\*Predict", r"\*\*Предскажите"),
            (r"\*\*Think", r"\*\*Подумайте"),
        ):
            counts = [len(re.findall(p, c.source, re.M)) for p, c in ((english, before), (translated, after))]
            assert counts[0] == counts[1], f"{path.stem} {before.id}: {translated}"


@EACH
def test_solutions_have_russian_titles(path):
    for name in test_turns.turns(path):
        titles = [c for c in rules.code_cells(rules.read(path)) if c.source.startswith(f"# @title Решение: {name}\n")]
        assert len(titles) == 1, name


@BOTH
def test_russian_is_typeset_as_russian(path):
    """«Ёлочки», decimal commas, and no English letter inside a Russian word, which looks right and is not found."""
    for _, cell in prose(path):
        text = re.sub(r"(?s)```.*?```|\$\$.*?\$\$|\$[^$\n]+\$|`[^`]+`|<[^>]+>|\]\([^)]+\)", " ", cell.source)
        text = re.sub(r"[‘’]", "'", text)
        where = f"{path.stem} {cell.id}"
        assert not re.findall(r'["“”]', text), f"{where}: «ёлочки»"
        assert not re.findall(r"[А-Яа-яё][A-Za-z]|[A-Za-z][А-Яа-яё]", text), f"{where}: letters of two alphabets"
        assert not re.findall(r"(?<![\d.@])\d+\.\d+(?![.\d])", text), f"{where}: a decimal point"


# --- the glossary ---


def glossary():
    """Rows of notebooks/ru/glossary.md: English terms, Russian terms."""
    text = (russian.FOLDER / "glossary.md").read_text(encoding="utf-8")
    rows = re.findall(r"(?m)^\| ([^|]+?) \| ([^|]+?) \|$", text)[1:]
    return [tuple(re.sub(r" \(.+?\)", "", cell).casefold().split(", ") for cell in row) for row in rows]


def parenthesised(path):
    """The Russian terms that an English text has in parentheses: each with the words around it."""
    for cell in rules.read(path).cells:
        if cell.cell_type == "markdown":
            text = re.sub(r"[*\s]+", " ", cell.source.casefold())
            for match in re.finditer(r"\(([^()]*[а-яё][^()]*)\)", text):
                if "«" in match[1] or "?" in match[1]:  # a quotation of the lecture
                    continue
                around = text[max(0, match.start() - 80) : match.end()]
                yield from (
                    (part.strip(), around) for part in re.split("[,;:]| и ", match[1]) if re.search("[а-яё]", part)
                )


@pytest.mark.parametrize(
    "path", [*rules.LESSONS, *map(russian.english, russian.assignments())], ids=lambda path: path.stem
)
def test_english_texts_and_the_glossary_agree(path):
    rows = glossary()
    for term, around in parenthesised(path):
        english = [word for row in rows if term in row[1] for word in row[0]]
        assert english, f"{path.stem}: glossary.md lacks {term!r} (… {around})"
        assert any(word in around for word in english), f"{path.stem}: {term!r} is {english}: … {around}"


@BOTH
def test_russian_texts_use_the_terms_of_the_glossary(path):
    """The terms that the English text introduces, in whatever case the sentence needs; or others of their row."""
    text = " ".join(new.source for _, new in prose(path)).casefold().replace("ё", "е")

    def said(term):
        words = [word if len(word) < 4 else word[: max(3, len(word) - 3)] for word in term.replace("ё", "е").split()]
        return re.search(r"\b" + r"[\w-]*\W+".join(map(re.escape, words)), text)

    for term, _ in parenthesised(russian.english(path)):
        others = {other for row in glossary() if term in row[1] for other in row[1]}
        assert any(map(said, others)), f"{path.stem} never says {' or '.join(sorted(others))!r}"


def test_every_row_of_the_glossary_is_one_term():
    rows = re.findall(r"(?m)^\| ([^|]+) \| ([^|]+) \|$", (russian.FOLDER / "glossary.md").read_text(encoding="utf-8"))
    names = [name for row in rows for name in row[0].split(", ")]
    assert not {name for name in names if names.count(name) > 1}, "one English term in two rows"
    assert [row[0] for row in rows[1:]] == sorted((row[0] for row in rows[1:]), key=str.casefold)
    assert all(russian.CYRILLIC.search(translation) for _, translation in rows)


# --- website/russian.py ---


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('print(f"{a} of {b:.2f}")', 'print(f"из {b:.2f} — {a}")'),
        ('x = "seen"  # why', 'x = "видно"  # почему'),
        ('assert y, "must be 0.5"', 'assert y, "должно быть 0,5"'),
        ("%pip install x\nz = 1", "%pip install x\nz = 1"),
        ('f"{len(v)} joints"', 'f"суставов: {len(v)}"'),
        ('f"{n:,} and {m:6,} of {k:{w}}"', 'f"{n} и {m:6} из {k:{w}}"'),
    ],
)
def test_other_words_are_the_same_code(old, new):
    assert russian.departs(old, new) is None


def test_numbers_are_read_in_both_languages():
    assert russian.numbers("3,186 crops, 0.625 px, 2.5 %") == russian.numbers(
        "3186 кропов, 0,625 px, 2,5 %", russian=True
    )
    assert russian.numbers("60,000 digits") == russian.numbers("60 000 цифр", russian=True) == ["60000"]
    assert russian.numbers("0.5") != russian.numbers("0,6", russian=True)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("x = 1", "x = 2", "code differs"),
        ("x = y", "x = z", "code differs"),
        ('f"{a} b"', 'f"{c} б"', "code differs"),
        ('f"{a:.2f} b"', 'f"{a:.3f} б"', "code differs"),
        ('f"{a} b"', '"б"', "code differs"),
        ('plot(loc="left")', 'plot(loc="right")', "an option must stay"),
        ('plot(loc="left")', "plot()", "code differs"),
        ('x = "5 px"', 'x = "6 пикселей"', "numbers"),
        ("%pip install x", "%pip install y", "magics"),
        ("x  # NBVAL_CHECK_OUTPUT", "x", "comments for programs"),
        ("### BEGIN SOLUTION\nx\n### END SOLUTION", "x\n### END SOLUTION", "comments for programs"),
        ("x = 1", "x = (", "no Python"),
    ],
)
def test_other_code_is_found(old, new, why):
    assert why in russian.departs(old, new)


def test_an_address_and_a_measurement_are_no_news():
    first = "*Measured on a 2-core CPU without GPU or network: 32 s, 1.2 GB.* https://colab.x/github/a-b/c/blob/main"
    other = first.replace("32 s, 1.2 GB", "9 s, 0.8 GB").replace("a-b/c", "you/your.course")
    assert russian.digest(first) == russian.digest(other) != russian.digest(first + "!")
    setup = '%pip install -q "git+https://github.com/a/b"'
    assert russian.digest(setup) == russian.digest(setup.replace("a/b", "c/d")) != russian.digest(setup + "x")


@pytest.fixture(params=["notebooks/ru/03_gan.ipynb", "assignments/gan/ru/gan.ipynb"], ids=["lesson", "assignment"])
def house(request, tmp_path, monkeypatch):
    """A house with one short notebook in English, and the place of its translation."""
    path = tmp_path / request.param
    monkeypatch.setattr(russian, "ROOT", tmp_path)
    monkeypatch.setattr(russian, "FOLDER", tmp_path / "notebooks" / "ru")
    v4 = nbformat.v4
    cells = [
        v4.new_markdown_cell(f"# 3. A title /blob/main/notebooks/{path.name}", id="first"),
        v4.new_code_cell("print('one')", id="second", metadata={"tags": ["check"]}),
    ]
    path.parents[1].mkdir(parents=True)
    nbformat.write(v4.new_notebook(cells=cells), path.parents[1] / path.name)
    return path


def change(path, **sources):
    content = nbformat.read(path, as_version=4)
    for cell in content.cells:
        cell.source = sources.get(cell.id, cell.source)
    nbformat.write(content, path)


def test_a_translation_begins_is_confirmed_and_goes_stale(house, capsys):
    assert russian.main(["follow", str(house)]) == 0 and russian.main([]) == 1
    assert capsys.readouterr().out.count("waits for its translation") == 2
    assert f"/notebooks/ru/{house.name}" in nbformat.read(house, as_version=4).cells[0].source
    assert russian.main(["confirm", str(house)]) == 1, "the title is still English"
    assert "first: it holds no Russian" in capsys.readouterr().out
    change(house, first="# 3. Заголовок", second="print('раз')")
    assert russian.main(["confirm", str(house)]) == 0 and russian.main(["list"]) == 0

    change(russian.english(house), second="print('two')")
    assert [cell for cell, _ in russian.stale(house)] == ["second"]
    assert russian.main([]) == 1 and f"{house.stem} second: moved on in English" in capsys.readouterr().out
    change(house, second="print('два', end='')")
    assert russian.main(["confirm", str(house), "second"]) == 1, "other code is not confirmed"
    change(house, second="print('два')")
    assert russian.main(["confirm", str(house), "second"]) == 0 and russian.main([]) == 0


def test_new_cells_are_taken_over_and_lost_ones_go(house):
    russian.follow(house)
    change(house, first="# 3. Заголовок", second="print('раз')")
    russian.confirm(house, [])
    content = nbformat.read(russian.english(house), as_version=4)
    content.cells = [content.cells[1], nbformat.v4.new_markdown_cell("More", id="third")]
    nbformat.write(content, russian.english(house))
    assert {(cell, what.partition(":")[0]) for cell, what in russian.stale(house)} == {
        ("first", "is no more in English"),
        ("third", "is new in English"),
    }
    russian.follow(house)
    assert [cell for cell, _ in russian.stale(house)] == ["third"]
    assert nbformat.read(house, as_version=4).cells[0].source == "print('раз')"


def test_another_order_and_other_metadata_are_found(house):
    russian.follow(house)
    content = nbformat.read(house, as_version=4)
    content.cells[1].metadata["tags"] = []
    content.cells.reverse()
    nbformat.write(content, house)
    found = "\n".join(what for _, what in russian.stale(house))
    assert "other metadata" in found and "another order" in found


def test_a_notebook_that_nobody_wrote_is_refused(house, capsys):
    for path in ("notebooks/ru/99_none.ipynb", russian.english(house)):
        with pytest.raises(SystemExit):
            russian.main(["follow", str(path)])
        assert f"expected ru/NAME.ipynb beside an English NAME.ipynb; got {path}" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        russian.main(["confirm"])
    assert "confirm which notebook?" in capsys.readouterr().err
