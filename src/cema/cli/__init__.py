"""The command line: click, every command with ``--json``. Only here do errors become exit codes."""
