"""The library, in twelve wings; each imports only from floors below its own.

From the ground up: `system`; `cache`; `recipe`, `data` and `tracking`; `models`; `training` and `evaluation`;
`reports`; `runs` and `tryout`; `sweep`. Two doors stand beside them: `serving` (the served model) and `__main__`
(cache, outbox).
"""
