"""The text of a harvest: documents of many sources, chats, token ids, and how they become sequences."""
