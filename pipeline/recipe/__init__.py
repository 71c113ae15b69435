"""The recipe: every choice of a run as typed keys, read from YAML and the command line; imports no torch.

In reading order: `fields` (kinds of values), `schema` (all sections and keys), `picture_sections` (those of pictures
and network), `training_sections` (those of training), `sweep_sections` (those of sweeps), `yaml_rules` (how YAML is
written and read), `mistakes` (what is wrong, in sentences), `recipe_file` (reads and overrides recipes), `presets`
(the recipes that are taken where none is named), `reference` (docs/recipe.md).
"""
