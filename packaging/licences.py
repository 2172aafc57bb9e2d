#!/usr/bin/env python3
"""Prints the licences of everything that a static binary for TARGET is made of: licences.py TARGET [FILE…].

The crates are those of Cargo.lock that the target needs; a FILE more is printed as it is (musl's, say).
"""

import json
import pathlib
import subprocess
import sys

NAMES = ("license", "licence", "copying", "notice", "copyright")

target, more = sys.argv[1], sys.argv[2:]
command = ["cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", target]
metadata = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
packages = {package["id"]: package for package in metadata["packages"]}
nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}

root = metadata["resolve"]["root"]
found, waiting = set(), [root]
while waiting:
    here = waiting.pop()
    if here in found:
        continue
    found.add(here)
    for dependency in nodes[here]["deps"]:
        if any(kind["kind"] is None for kind in dependency["dep_kinds"]):
            waiting.append(dependency["pkg"])

texts = {}
print("bluehook is made with the following, besides Rust's standard library (MIT or Apache-2.0).\n")
for package in sorted((packages[key] for key in found if key != root), key=lambda p: (p["name"], p["version"])):
    print(f'{package["name"]} {package["version"]}: {package["license"]}')
    folder = pathlib.Path(package["manifest_path"]).parent
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.name.lower().startswith(NAMES) and not file.name.endswith(".rs"):
            text = file.read_text(errors="replace").strip()
            texts.setdefault(text, []).append(package["name"])
for text, names in sorted(texts.items(), key=lambda item: item[1]):
    print("\n" + "-" * 78 + "\n" + ", ".join(sorted(set(names))) + ":\n\n" + text)
for file in more:
    print("\n" + "-" * 78 + f"\n{pathlib.Path(file).parent.name}:\n\n" + pathlib.Path(file).read_text().strip())
