"""The library: plain functions over flat values. It knows nothing of the stages that call it."""
