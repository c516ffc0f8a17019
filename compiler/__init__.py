"""The compiler: what knows ONNX and passes, and nothing of any frontend, pass or backend but their names.

Read `driver` first: it is the whole path. Then, in the order in which they depend on each other:

- the model: `graph` (reading and changing it), `ops`, `shapes`, `weights`, `text`; `dims` and `shape_values` for sizes
  that are not numbers;
- passes: `passbase` (what one is), `patterns`, `matching` and `rewriting` (expressions), `pipelines` (the levels);
- weights of few bits: `grids` (what they may be), `gridfit` (choosing them), with `gridtables`, `kmeans`, `vectors`,
  `scales`, `cells`, `points`;
- running and comparing: `session`, `data`, `synthesis`, `numerics`, `verify`, `checks`, `rounding`;
- the frame: `manager` (runs and checks passes), `reference`, `proof`, `records`, `report`, `cli`.
"""
