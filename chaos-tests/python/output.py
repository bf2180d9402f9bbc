"""Holds what a command printed against its definition in docs/output.schema.json.

Usage: output.py SCHEMA COMMAND < result
"""

import json, sys

import jsonschema

with open(sys.argv[1]) as file:
    schema = json.load(file)
command = sys.argv[2]
if command not in schema["$defs"]:
    sys.exit(f"{command} has no definition")
own = {"$schema": schema["$schema"], "$defs": schema["$defs"], "$ref": f"#/$defs/{command}"}
jsonschema.Draft202012Validator.check_schema(own)
for error in jsonschema.Draft202012Validator(own).iter_errors(json.load(sys.stdin)):
    sys.exit(f"{command}: {error.json_path}: {error.message}")
