"""The passes: a file each, named as the pass is, found through entry points as anybody's own would be.

What several passes, or long ones, are made of lies beside them:

- weights: `linear` (where weight, bias and channels are), `folding` (scales and shifts into them), `weight_grid`;
- few bits: `grid_options` (what a target can store of what was asked for);
- views: `rearrange` and `view_steps` (a chain made shorter), `layouts` and `tracing` (what a value looks at),
  `row_wise` and `sink_transposes` (views moved past operators);
- recognising: `attention_forms`, `attention_mask`, `group_normalization`, `scale_shift`;
- clean-up: `no_op_rules`, `value_ranges`, `repeated`;
- half precision: `half` and `half_plan`; the search that it shares with 8-bit weights: `noise_search`;
- legalisation: `expansions`.
"""
