"""One line of comma separated values (RFC 4180)."""


def parse(line):
    """Return the fields of a line; a quoted field may hold commas and doubled quotes."""
    fields = []
    field = ""
    quoted = False
    index = 0
    while index < len(line):
        char = line[index]
        if quoted and line.startswith('""', index):
            field += '"'
            index += 1
            continue
        if char == '"':
            quoted = not quoted
        elif char == "," and not quoted:
            fields.append(field)
            field = ""
        else:
            field += char
        index += 1
    fields.append(field)
    return fields


def render(fields):
    """Return the line for some fields, quoted where needed."""
    cells = []
    for field in fields:
        if "," in field or '"' in field:
            field = '"' + field.replace('"', '""') + '"'
        cells.append(field)
    return ",".join(cells)
