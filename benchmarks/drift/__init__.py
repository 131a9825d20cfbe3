"""How often does drift alarm without drift, and how soon with it? Beside evidently's defaults on the same windows."""
