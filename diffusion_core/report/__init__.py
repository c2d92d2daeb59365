"""The page of a run: its samples, metrics, curves, origin and the gate's decision."""
