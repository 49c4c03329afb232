//! Errors as people read them.

use std::error::Error;

/// An error with its causes: `write the map: no space left`.
#[must_use]
pub fn describe(error: &dyn Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| (*cause).source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt;

    #[derive(Debug)]
    struct Step(&'static str, Option<Box<Step>>);

    impl fmt::Display for Step {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Step {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|cause| cause as &dyn Error)
        }
    }

    #[test]
    fn causes_follow_in_their_order() {
        let cause = Step("open the map", Some(Box::new(Step("not permitted", None))));
        let error = Step("start", Some(Box::new(cause)));
        assert_eq!(describe(&error), "start: open the map: not permitted");
        assert_eq!(describe(&Step("alone", None)), "alone");
    }
}
