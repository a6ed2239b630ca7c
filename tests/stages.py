"""The default recipe's stages."""

from caption_assets.captioning.recipe_file import built_in
from caption_assets.store.tables import CLIP_MANIFEST

STAGE1, STAGE2 = STAGES = built_in("general").stages
TABLE_NAMES = (CLIP_MANIFEST, *(stage.name for stage in STAGES))
