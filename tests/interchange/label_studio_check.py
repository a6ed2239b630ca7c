"""The check of configuration, tasks and annotations by Label Studio's own package, in an environment of its own.

python label_studio_check.py CONFIG TASKS ANNOTATIONS
"""

import json
import sys
from pathlib import Path

from label_studio_sdk.label_interface import LabelInterface

config, tasks, annotations = (Path(name).read_text(encoding="utf-8") for name in sys.argv[1:])
interface = LabelInterface(config)
interface.validate()
for task in json.loads(tasks):
    assert interface.validate_task({"data": task["data"]}), task
    for prediction in task["predictions"]:
        errors = interface.validate_prediction(prediction, return_errors=True)
        assert not errors, errors
for task in json.loads(annotations):
    for annotation in task["annotations"]:
        assert interface.validate_annotation(annotation), annotation
assert not interface.validate_annotation({"result": [{**annotation["result"][0], "from_name": "other"}]})
print(len(list(interface.controls)), "controls")
