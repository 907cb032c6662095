"""Cut the elevation model into tiles and write the workflow that shades and joins them, ready to be submitted.

python examples/terrain/prepare.py FOLDER [ROWS COLS]
ioc-node submit FOLDER/terrain.toml --follow
"""

import sys
from pathlib import Path

import tomli_w

from ioc_node.errors import NodeError
from ioc_testnet import terrain


def main(folder: str, rows: str = "3", cols: str = "4") -> None:
    into = Path(folder)
    into.mkdir(parents=True, exist_ok=True)
    tiles = terrain.cut_tiles(terrain.load_elevation(), int(rows), int(cols))
    for tile in tiles:
        (into / tile.name).write_bytes(tile.data)
    (into / "terrain.toml").write_text(tomli_w.dumps(terrain.workflow_document(tiles)))
    sys.stdout.write(f"{len(tiles)} tiles and {into / 'terrain.toml'} written\n")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 4):
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except (NodeError, ValueError, OSError) as error:
        sys.exit(f"prepare.py: {error}")
