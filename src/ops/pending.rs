//! Values that may still be on their way from a device: whoever wants one waits for it.

/// A value that is there when it has been waited for.
pub struct Pending<T>(Box<dyn FnOnce() -> anyhow::Result<T> + Send>);

impl<T: Send + 'static> Pending<T> {
    /// What `wait` gives, which is called at most once.
    pub fn new(wait: impl FnOnce() -> anyhow::Result<T> + Send + 'static) -> Self {
        Self(Box::new(wait))
    }

    /// A value that is there.
    pub fn now(value: T) -> Self {
        Self::new(move || Ok(value))
    }

    /// What becomes of the value, worked out when somebody waits.
    pub fn map<U: Send + 'static>(self, with: impl FnOnce(T) -> U + Send + 'static) -> Pending<U> {
        Pending::new(move || Ok(with(self.wait()?)))
    }

    /// The value.
    ///
    /// # Errors
    /// When the device has failed.
    pub fn wait(self) -> anyhow::Result<T> {
        (self.0)()
    }
}
