"""Size and shape of the product's code: `python -m bench.house [DIRECTORY ...]` prints a table, a column a checkout."""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from bench.table import Table
from harness.house import IN_SERVING, SMALL_LINES, House, length, parameters


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", nargs="*", type=Path, default=[Path()])
    parser.add_argument("--names", action="store_true", help="name the modules, classes and functions, too")
    parser.add_argument("--tree", action="store_true", help="print the packages and their modules instead")
    arguments = parser.parse_args()
    if arguments.tree:
        print(*House(arguments.directory[0]).tree(), sep="\n")
        return
    houses = [House(root) for root in arguments.directory]
    table = Table("figure", *map(str, arguments.directory))
    lengths = [sorted(length(function) for _, function in house.functions()) for house in houses]
    table.add("product lines", *(house.lines() for house in houses))
    table.add("product modules", *(len(house.texts) for house in houses))
    table.add("lines in serving/", *(house.lines(*IN_SERVING) for house in houses))
    table.add("files flat in serving/", *(house.flat_files() for house in houses))
    table.add(f"modules below {SMALL_LINES} lines, one importer", *(len(house.small_modules()) for house in houses))
    table.add("median function", *(statistics.median(each) for each in lengths))
    table.add("p90 function", *(each[int(0.9 * len(each))] for each in lengths))
    table.add("functions over 60 lines", *(sum(length > 60 for length in each) for each in lengths))
    table.add(
        "functions of more than 8 parameters", *(sum(parameters(f) > 8 for _, f in h.functions()) for h in houses)
    )
    table.add("public class names used twice", *(len(house.repeated_classes()) for house in houses))
    table.add("import cycles", *("yes" if house.has_cycle() else 0 for house in houses))
    print(table)
    if arguments.names:
        for house in houses:
            print("small:", *house.small_modules())
            print("repeated:", *house.repeated_classes())
            print("long:", *(name for name, function in house.functions() if length(function) > 60))
            print("parameters:", *(name for name, function in house.functions() if parameters(function) > 8))


if __name__ == "__main__":
    main()
