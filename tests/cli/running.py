"""One call of the command line: exit code, what it says, what it warns of."""

from vlcal.cli import main


def run(capsys, *words):
    code = main([str(word) for word in words])
    said = capsys.readouterr()
    return code, said.out, said.err
