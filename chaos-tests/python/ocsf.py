"""Holds every line of an export against the published OCSF schema of its class and version. Offline: the schemas come with
the package.

Usage: ocsf.py FILE
"""

import json, sys

import jsonschema
from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema

schemas, checked = {}, set()
with open(sys.argv[1]) as lines:
    for number, line in enumerate(lines, 1):
        event = json.loads(line)
        version, uid = event["metadata"]["version"], event["class_uid"]
        if (version, uid) not in schemas:
            published = OcsfJsonSchemaEmbedded(get_ocsf_schema(version=version))
            name = published.lookup_class_name_from_uid(uid)
            schemas[version, uid] = jsonschema.Draft202012Validator(published.get_class_schema(name))
        for error in schemas[version, uid].iter_errors(event):
            sys.exit(f"line {number}, {event['metadata']['event_code']}: {error.json_path}: {error.message}")
        checked.add(event["metadata"]["event_code"])
print(" ".join(sorted(checked)))
