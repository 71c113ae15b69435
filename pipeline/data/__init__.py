"""From the path of a picture to a batch of images.

In reading order: readers/ list the pictures; inspection, corrections, splits and manifest say which of them a run uses,
as what and for what; decode, deep, nvjpeg, decoded_pixels and stored_pixels turn them into squares of pixels; augment,
batches and loader make batches of these. picture_input reads what is sent to a served model.
"""
