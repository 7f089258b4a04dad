/** What goes on now. */
export class LiveView {
  setActive() {}
}
