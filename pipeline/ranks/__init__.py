"""Several processes that do one command's work together, started by torchrun or by `processes`: one of them leads.

The leader, process 0, runs the command as a single process would: it alone speaks to the tracking server, decides and
publishes. Where there is much to compute it calls a function on all of them; the helpers wait for such calls, and for
nothing else.

In reading order: `environment` (which process this is), `deal` (who gets what of a batch), `door` (where a command
meets the others), `attempt` (which start of all processes this is), `watch` (a thread that hears what goes wrong
elsewhere), `team` (leading and helping), `readiness` (what helpers do beforehand), `launch` (starts the processes),
`exchange` (what is sent between them), `folders` (files for machines that share no disk).
"""
