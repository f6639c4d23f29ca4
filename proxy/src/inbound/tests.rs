//! Who is let in, how, and what the app gets to see of it.
