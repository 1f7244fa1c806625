from toolbox.csv_line import parse, render


def test_plain():
    assert parse("a,b,c") == ["a", "b", "c"]


def test_empty_fields():
    assert parse(",b,") == ["", "b", ""]


def test_quoted_comma():
    assert parse('1,"Doe, Jane",2') == ["1", "Doe, Jane", "2"]


def test_doubled_quote():
    assert parse('"say ""hi, you""",2') == ['say "hi, you"', "2"]


def test_render_plain():
    assert render(["a", "", "c"]) == "a,,c"


def test_render_quoted():
    assert render(["Doe, Jane", 'the "x"']) == '"Doe, Jane","the ""x"""'


def test_there_and_back():
    fields = ['5" disk', "a,b", "plain"]
    assert parse(render(fields)) == fields
