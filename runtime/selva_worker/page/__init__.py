"""The page of a worker on HTTP: its files, what it keeps on the disk, and its routes beside the methods.

`static/` holds the page as the browser gets it: no build step, no other server. `static/wavesurfer/` is wavesurfer.js.
"""
