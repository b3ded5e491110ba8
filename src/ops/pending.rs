//! Values that a device is still computing or copying. Reading a value waits until it has arrived.

/// A value that may not have arrived yet. [`Pending::wait`] blocks until it has.
pub struct Pending<T>(Box<dyn FnOnce() -> anyhow::Result<T> + Send>);

impl<T: Send + 'static> Pending<T> {
    /// The result of `wait`, which blocks until the value has arrived. It is called at most once.
    pub fn new(wait: impl FnOnce() -> anyhow::Result<T> + Send + 'static) -> Self {
        Self(Box::new(wait))
    }

    /// A value that is available already.
    pub fn now(value: T) -> Self {
        Self::new(move || Ok(value))
    }

    /// Applies `with` to the value, when [`Pending::wait`] is called.
    pub fn map<U: Send + 'static>(self, with: impl FnOnce(T) -> U + Send + 'static) -> Pending<U> {
        Pending::new(move || Ok(with(self.wait()?)))
    }

    /// Blocks until the value has arrived, and returns it.
    ///
    /// # Errors
    /// When the device fails.
    pub fn wait(self) -> anyhow::Result<T> {
        (self.0)()
    }
}
