//! The retry budget (GEP-3388): retries may be at most a share of the requests.

/// One for each Service port, shared by all workers.
#[derive(Debug)]
pub struct RetryBudget {}

impl RetryBudget {
    /// Counts a request.
    pub fn deposit(&self) {
        todo!()
    }

    /// Takes one retry out of the budget. False: there is none left.
    pub fn withdraw(&self) -> bool {
        todo!()
    }
}
