/** The list of variants. */
export class VariantsView {
  setActive() {}
}
