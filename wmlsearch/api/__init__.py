"""The Python API: what the commands do, for notebooks and scripts.

```python
import wmlsearch

wmlsearch.prepare("raw", "prepared", plane="axial")
search = wmlsearch.tune("quick", data="prepared", trials=12)
search.trials                      # a pandas DataFrame
wmlsearch.load_model(search).predict("flair.nii.gz").save("predicted")
```

Each function reads its arguments and calls one workflow, as each command does. Every result is read from the run
folder, so `load_search` also opens a search that was started on the command line.
"""

from wmlsearch.api.data import phantom as phantom
from wmlsearch.api.data import prepare as prepare
from wmlsearch.api.models import Model as Model
from wmlsearch.api.models import Prediction as Prediction
from wmlsearch.api.models import load_model as load_model
from wmlsearch.api.searches import Champion as Champion
from wmlsearch.api.searches import Search as Search
from wmlsearch.api.searches import load_search as load_search
from wmlsearch.api.searches import resume as resume
from wmlsearch.api.searches import tune as tune
from wmlsearch.errors import InputError as InputError
from wmlsearch.runs.evaluation import Verdict as Verdict
