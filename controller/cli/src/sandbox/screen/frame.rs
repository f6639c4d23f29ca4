//! Fits the output to the terminal. Pure.

/// Columns and rows if the terminal's size is unknown.
pub const USUAL: (usize, usize) = (80, 24);
/// Messages that take precedence over hints when there is room for few lines.
const FEW_MESSAGES: usize = 3;

/// Blocks of lines, in the order in which they are shown.
#[derive(Clone, Debug, Default)]
pub struct Frame {
    /// The summary and the table's head.
    pub head: Vec<String>,
    pub rows: Vec<String>,
    /// Shown only as a whole.
    pub pods: Vec<String>,
    /// Shown only as a whole.
    pub hints: Vec<String>,
    /// The last ones take precedence.
    pub messages: Vec<String>,
}

impl Frame {
    /// At most `height` lines.
    pub fn fit(mut self, height: usize) -> Vec<String> {
        let mut left = height.saturating_sub(self.head.len());
        if self.rows.len() > left {
            let hidden = self.rows.len() + 1 - left;
            self.rows.truncate(left.saturating_sub(1));
            self.rows.push(format!("… and {hidden} more"));
        }
        left = left.saturating_sub(self.rows.len());
        // Each block needs one extra line, which is empty.
        let mut take = |wanted: usize| {
            let fits = wanted > 0 && wanted < left;
            left -= if fits { wanted + 1 } else { 0 };
            fits
        };
        let few = self.messages.len().min(FEW_MESSAGES);
        let messages = take(few);
        let hints = take(self.hints.len());
        let pods = take(self.pods.len());
        let shown = match messages {
            true => (few + left).min(self.messages.len()),
            false => 0,
        };
        let mut lines = self.head;
        lines.append(&mut self.rows);
        let messages = self.messages.split_off(self.messages.len() - shown);
        for (fits, block) in [
            (pods, self.pods),
            (hints, self.hints),
            (shown > 0, messages),
        ] {
            if fits {
                lines.push(String::new());
                lines.extend(block);
            }
        }
        lines.truncate(height);
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame() -> Frame {
        let lines = |name: &str, count| (1..=count).map(|i| format!("{name}{i}")).collect();
        Frame {
            head: lines("head", 2),
            rows: lines("row", 3),
            pods: lines("pod", 4),
            hints: lines("hint", 2),
            messages: lines("message", 5),
        }
    }

    fn fit(height: usize) -> String {
        let lines = frame().fit(height);
        assert!(lines.len() <= height, "{lines:?}");
        lines.join(" ")
    }

    #[test]
    fn everything_is_shown_if_there_is_room() {
        let all = "head1 head2 row1 row2 row3  pod1 pod2 pod3 pod4  hint1 hint2  message1 \
            message2 message3 message4 message5";
        assert_eq!(fit(19), all);
        assert_eq!(fit(100), all);
    }

    #[test]
    fn pods_are_cut_first_then_hints_then_messages_then_rows() {
        let table = "head1 head2 row1 row2 row3";
        let messages = "message3 message4 message5";
        assert_eq!(
            fit(13),
            format!("{table}  hint1 hint2  message2 {messages}")
        );
        assert_eq!(fit(11), format!("{table}  message1 message2 {messages}"));
        assert_eq!(fit(9), format!("{table}  {messages}"));
        assert_eq!(fit(5), table);
        assert_eq!(fit(4), "head1 head2 row1 … and 2 more");
        for height in 0..4 {
            fit(height);
        }
    }
}
