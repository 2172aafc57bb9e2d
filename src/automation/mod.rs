//! Message view and follow-up rules: not built yet (they come with the automations).
