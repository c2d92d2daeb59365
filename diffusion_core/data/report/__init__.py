"""The report of a dataset: numbers for `metrics/data.json` and the page `plots/data.html`."""
