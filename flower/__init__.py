"""Every private door of Flower: what the rest of the house may not import from it stands here."""
